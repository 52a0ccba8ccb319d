"""Training data: rows read, fields found, tokens stored, samples made, every one once.

    sources → `rows` → `fields` → `tokenizer` → `prepare` → `store` → `samples` → `order`

Preparing is done once, by one process; the ranks then map the stored tokens into memory.
"""
