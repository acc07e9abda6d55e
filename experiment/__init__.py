"""Plan and run experiments: arms with equal budgets, trained with the same seeds.

A `request` contains the user's options. `arms` creates the architectures, `matching` gives them
equal sizes and `budgets` equal budgets, and `plan` combines them. `jobs` are the required runs of
train.py, `engines` run them, and the `manifest` describes the contents of the sweep's folder.
"""
