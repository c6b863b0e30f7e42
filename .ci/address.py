"""Writes the project's public address into README.md and pyproject.toml, for a release.

    python .ci/address.py https://github.com/OWNER/NAME v0.1.0

The index page shows the README, where links to files of the repository must be absolute. Only the
workflow of a release knows the address, so it calls this before it builds, and commits nothing.
"""

import pathlib
import re
import sys

PAGES = {"Homepage": "", "Issues": "/issues", "Changelog": "/blob/{tag}/CHANGELOG.md"}


def main(address: str, tag: str) -> None:
    """Rewrites both files in the folder that it is called in."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({address}/{kind}/{tag}/{link['path']})"

    readme = pathlib.Path("README.md")
    link = r"(?P<image>!?)\[(?P<text>[^]\n]*)\]\((?!\w+:|#)(?P<path>[^)\s]+)\)"
    readme.write_text(re.sub(link, absolute, readme.read_text()))

    pages = [f'{name} = "{address}{path.format(tag=tag)}"\n' for name, path in PAGES.items()]
    with pathlib.Path("pyproject.toml").open("a") as project:
        project.write("\n[project.urls]\n" + "".join(pages))


if __name__ == "__main__":
    main(*sys.argv[1:])
