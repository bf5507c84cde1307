"""Attacks on packtrain: damaged datasets, runs and exports, rubbish as settings and files, memory bombs, kills and signals."""
