"""Builders of the datasets: imported and run by us; what they publish is Parquet."""
