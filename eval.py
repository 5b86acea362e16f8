"""Judge an encoder on a task: `python eval.py task=speaker mode=frozen bundle=RUN`; `--help` lists all options."""

from decar.cli.eval import main

if __name__ == "__main__":
    main()
