"""A page that shows what became of a run. Read `page.py` first; `collect.py` reads the files, `charts.py` draws."""
