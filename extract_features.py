"""Clips to a feature store: every frame, or every run of frames, through a frozen encoder; `--help` says how.

python extract_features.py --videos my_videos --encoder efficientnet-lite0 --num_frames 8 --output_dir features/mine
torchrun --nproc_per_node 8 extract_features.py ...         (or accelerate launch; any number of machines)
"""

from modeling_mmt.extraction.extract import main

if __name__ == "__main__":
    main()
