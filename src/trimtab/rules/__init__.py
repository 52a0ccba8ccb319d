"""What can be wrong with a DeepSpeed configuration: one function a rule, one file a family.

`trimtab.rules.base` says what a rule is, `trimtab.rules.subject` what it looks at, and
`trimtab.rules.registry` has the table of all.
"""
