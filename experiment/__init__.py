"""Plans and runs experiments: arms of equal budgets, trained with the same seeds.

A `request` is what a person asks for. `arms` makes the architectures of it, `matching` gives them
equal sizes, `budgets` equal lengths, and `plan` puts them together. `jobs` are the runs of
train.py that it takes, `engines` run them, and the `manifest` says what lies in the sweep's folder.
"""
