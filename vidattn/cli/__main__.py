"""``python -m vidattn.cli``, for where the console script is not on the path."""

from vidattn.cli.main import main

raise SystemExit(main())
