"""``python -m torchrl_wm train ...``, the same as ``torchrl-wm train ...``."""

from torchrl_wm.cli import main

if __name__ == "__main__":
    main()
