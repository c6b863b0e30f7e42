"""Builds the site, with warnings as errors.

python docs/build.py [FOLDER]    # needs the extra `docs`; writes build/site by default
"""

import pathlib
import sys

from sphinx.cmd.build import main

HERE = pathlib.Path(__file__).parent

if __name__ == "__main__":
    folder = sys.argv[1] if sys.argv[1:] else str(HERE.parent / "build" / "site")
    status = main(["-E", "-W", "--keep-going", "-q", "-b", "html", str(HERE), folder])
    if not status:
        print(f"open {pathlib.Path(folder).absolute() / 'index.html'}")
    sys.exit(status)
