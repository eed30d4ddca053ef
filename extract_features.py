"""Clips to a feature store, as `mmt extract`: every frame, or every run of frames, through a frozen encoder.

python extract_features.py my_videos --encoder efficientnet-lite0 --num_frames 8 --output_dir features/mine
torchrun --nproc_per_node 8 extract_features.py ...         (or accelerate launch; any number of machines)
"""

import sys

import mmt

if __name__ == "__main__":
    sys.exit(mmt.main(["extract", *sys.argv[1:]]))
