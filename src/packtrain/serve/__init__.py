"""A model over HTTP. Read `app.py` (what is answered) first, then `worker.py` (who runs the model) and `wanted.py` (what may be asked)."""
