"""Run lessons and write each as a page with its output and pictures: ``python docs/lessons/render.py``.

``python docs/lessons/render.py 05`` renders those whose names start with 05. Needs the extra ``lessons``.
"""

import sys
from pathlib import Path

import jupytext
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

HERE = Path(__file__).parent
IMAGES = "images"
NOTE = "*Made from [{0}]({0}) by [render.py](render.py): edit and run that file.*\n\n"

# Pictures keep the names and the words that `pictures.show` gave them.
TEMPLATE = """{% extends 'markdown/index.md.j2' %}
{% block data_png %}
![{{ output.metadata.alt }}]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock data_png %}
"""


def page(lesson):
    """(Markdown, pictures by file name) of a lesson that was run in this moment."""
    notebook = jupytext.read(lesson)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in notebook.cells:
        cell.source = cell.source.strip()
    resources = {"metadata": {"path": str(lesson.parent)}, "output_files_dir": IMAGES}
    notebook, resources = ExecutePreprocessor(timeout=600).preprocess(notebook, resources)
    markdown, resources = MarkdownExporter(raw_template=TEMPLATE).from_notebook_node(notebook, resources)
    lines = [line.rstrip() for line in markdown.strip().splitlines()]
    return NOTE.format(lesson.name) + "\n".join(lines) + "\n", resources["outputs"]


def main(beginnings):
    """Render the lessons whose names start with one of `beginnings`, or all."""
    lessons = [path for path in sorted(HERE.glob("[0-9]*.py")) if path.name.startswith(tuple(beginnings or [""]))]
    if not lessons:
        raise SystemExit(f"no lesson is called {' or '.join(beginnings)}...")
    for lesson in lessons:
        markdown, pictures = page(lesson)
        for name, png in pictures.items():
            (HERE / name).parent.mkdir(exist_ok=True)
            (HERE / name).write_bytes(png)
        lesson.with_suffix(".md").write_text(markdown, encoding="utf-8")
        print(f"{lesson.stem}.md, {len(pictures)} pictures")


if __name__ == "__main__":
    main(sys.argv[1:])
