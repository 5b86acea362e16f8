"""Pre-train an encoder: `python train.py data=folder data.root=DIR`; `--help` lists all options."""

from decar.cli.train import main

if __name__ == "__main__":
    main()
