"""Run docs/notebook.ipynb.

`python benchmarks/notebook.py` updates the outputs in place. With `--out FILE` it writes them to another file.
"""

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def executed() -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a run in a temporary folder; raise nbclient's error if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}, record_timing=False)
        client.execute()
    for cell in notebook.cells:
        # The warnings of libraries on this machine do not help readers.
        cell.outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    return notebook


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK)
    nbformat.write(executed(), parser.parse_args().out)
