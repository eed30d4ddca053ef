"""Publishing on the Hub, and the card of what is published."""
