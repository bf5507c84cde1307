"""Learning per token: trains a preset at a fixed budget, scores it by one protocol, keeps one line of JSON; starts in `__main__.py`.

**What is scored.** The whole validation split, each document by itself from its first token, in windows of the run's sequence length
that repeat half of the window before (`evaluate/documents.py`). Packing, masks and batches of a run do not matter, and neither does its
tokenizer, because the figure is bits per byte of the same text. Shakespeare's characters are scored without overlap, as nanoGPT does.

**What is compared with what.** A schedule that decays has its best figure at its end, and at no step before. So:

- *Finished runs* are compared with finished runs: mean against mean over seeds. A difference that is not larger than the spread
  (the larger standard deviation over seeds of the two) is called nothing.
- *Tokens to another recipe's final figure*, "finished": runs of one recipe at several budgets (`--share 0.35`), each with its whole
  schedule, warm-up and decay, in that budget. Between the two budgets around the figure it is interpolated, linear in the logarithm of
  tokens. Nothing is extrapolated: if the smallest budget is already good enough, the table says "at most".
- The same "on the way": the first point of a run's own curve at or below the figure. The learning rate has not decayed there, so
  it is an upper bound: a run that was planned to end there would be lower. For a constant schedule both are the same.
- *Minutes* are processor seconds over threads: what the run takes on a quiet machine. Wall seconds are kept beside them.
"""
