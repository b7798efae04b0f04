"""Train from a config, on the CPU or on one or several GPUs.

    python train/train.py configs/compact.yaml training.epochs=3
    accelerate launch --num_processes 4 train/train.py configs/arabert.yaml

The same as `rasid train`; a file of its own so that `accelerate launch` can start it.
"""

from rasid.cli.main import train_script

if __name__ == "__main__":
    train_script()
