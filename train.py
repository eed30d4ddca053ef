"""Pre-train on many languages, fine-tune on English, search in all: one recipe, one run.

On a laptop:             python train.py modeling_mmt/recipes/emoji9/mmp_en.yaml --output_dir runs/mmp_en
On four processes:       torchrun --nproc_per_node 4 train.py modeling_mmt/recipes/emoji9/mmp_en.yaml
What is missing for it:  python train.py modeling_mmt/recipes/paper/xlmr_mmp_en.yaml --dry_run
"""

from modeling_mmt.training.run import command

if __name__ == "__main__":
    command()
