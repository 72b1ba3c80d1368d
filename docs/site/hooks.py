"""What MkDocs needs to know of this project: pages from outside ``docs``, and the reference.

Links lead from file to file of the checkout, as GitHub follows them. Here a page outside ``docs``
becomes a page of the site, any other file that a page links to is copied beside it, and what does
not exist is an error.
"""

from __future__ import annotations

import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
"""Pages that lie outside ``docs``, and their names in the site."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
PACKAGES = ("edgeuda", "engines", "calibration")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside, the reference, and the files that pages link to."""
    for path, name in PAGES.items():
        files.append(_made(config, name, (ROOT / path).read_text(encoding="utf-8")))
    files.append(_made(config, "reference.md", reference()))
    files.append(_made(config, "recipe-keys.md", recipe_keys()))
    origins = {name: path for path, name in PAGES.items()}
    linked = set()
    for file in files.documentation_pages():
        origin = origins.get(file.src_uri, f"docs/{file.src_uri}")
        linked |= {_target(origin, link) for link in LINK.findall(file.content_string)}
    for path in sorted(linked):
        if (ROOT / path).is_dir():
            listing = "\n".join(f"- [{p.name}]({p.name})" for p in sorted((ROOT / path).iterdir()))
            files.append(_made(config, f"{path}/index.md", f"# {path}\n\n{listing}\n"))
            linked = linked | {f"{path}/{p.name}" for p in (ROOT / path).iterdir()}
    for path in sorted(linked):
        name = _name(path)
        if (ROOT / path).is_file() and files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their files are in the site."""
    origin = {name: path for path, name in PAGES.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )
    if not (ROOT / origin).exists():  # made above, with links of the site
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        path = _target(origin, found[1])
        if not (ROOT / path).exists():
            msg = f"{origin} links to {found[1]}, which does not exist"
            raise PluginError(msg)
        name = f"{path}/index.md" if (ROOT / path).is_dir() else _name(path)
        return posixpath.relpath(name, folder or ".")

    return LINK.sub(moved, markdown)


def reference() -> str:
    """Return the page of all that the packages export, one heading each."""
    lines = ["# Python reference", "", "What is not on this page can change with any version."]
    for package in PACKAGES:
        module = import_module(package)
        lines += ["", f"## {package}", "", (module.__doc__ or "").strip()]
        for name in module.__all__:
            lines += ["", _described(getattr(module, name), f"{package}.{name}")]
    return "\n".join(lines)


def recipe_keys() -> str:
    """Return the page of a recipe's tables and their keys."""
    from edgeuda.methods.registry import METHODS
    from edgeuda.training.recipe import Geometry, ModelSection, MonitorSection, Recipe

    lines = ["# Keys of a recipe", "", _described(Recipe, "At the top", members=False)]
    for name, section in (
        ("model", ModelSection),
        ("geometry", Geometry),
        ("monitor", MonitorSection),
    ):
        lines += ["", _described(section, f"[{name}]", members=False)]
    for name, method in METHODS.items():
        lines += ["", _described(method.settings, f"[{name}]", members=False)]
    return "\n".join(lines)


def _described(found: Any, heading: str, members: bool = True) -> str:
    """Ask for the docstring of an object, under a heading."""
    options = f"heading: {heading!r}" + ("" if members else "\n      members: false")
    return f"::: {found.__module__}.{found.__qualname__}\n    options:\n      {options}"


def _made(config: MkDocsConfig, name: str, content: str) -> File:
    return File.generated(config, name, content=content)


def _target(origin: str, link: str) -> str:
    """The path in the checkout that a link of a file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _name(path: str) -> str:
    """The name in the site of a file of the checkout."""
    return PAGES.get(path, path.removeprefix("docs/"))
