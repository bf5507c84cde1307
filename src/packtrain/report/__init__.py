"""A page that shows what a run did, or what a dataset is. Read `page.py` first; `collect.py` reads files, `charts.py` draws."""
