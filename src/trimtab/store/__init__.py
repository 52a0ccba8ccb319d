"""The history: every rehearsal and training of this machine, in one SQLite file.

`trimtab.store.database` keeps it; `trimtab.rehearse.entry` and `trimtab.train.entry` make its entries.
Nothing here imports torch.
"""
