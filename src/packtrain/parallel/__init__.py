"""The processes of a run: `ranks.py` says who I am and sums over all; `wrap.py` spreads the model. Only user of torch.distributed."""
