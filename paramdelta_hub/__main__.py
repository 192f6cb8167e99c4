"""``python -m paramdelta_hub`` is ``paramdelta``."""

from paramdelta_hub.cli import main

if __name__ == "__main__":
    main()
