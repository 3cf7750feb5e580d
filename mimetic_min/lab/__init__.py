"""The laboratory: what the two training scripts share, and what nobody needs to read first.

options.py    the options that both scripts have
script.py     what the user sees of a mistake, a stop and a bug
runs.py       a grid of runs in a folder: checkpoints, going on after a stop, results.json
table.py      the closing table: the best rate of each start, mean and spread, gains
parallel.py   several processes that train one model
figures.py    pictures of models and arrays
download.py   data sets, fetched once and checked
progress.py   the line that tells how far it is
files.py      files that are written whole or not at all
"""
