"""Mimetic initialization of transformers, a reference implementation to read, copy and teach from.

vit.py        a vision transformer and the initialiser, in one file that needs torch alone
gpt.py        a GPT and the same initialiser, likewise
data.py       images and text for the two training scripts
options.py    their options, each checked before anything is trained
training.py   one run, the grid of runs, and how either goes on after a stop
parallel.py   several processes that train one model
report.py     what they print and leave behind: progress, the closing table, run folders
layouts.py    the four weights in other people's attention, and in files
figures.py    pictures, which need matplotlib
"""
