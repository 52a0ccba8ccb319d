"""The training runtime: a thin loop over ``deepspeed.initialize`` and Hugging Face models.

Read `loop.run` first; everything else is a part that it calls.  ``import trimtab.train`` stays light: torch,
DeepSpeed and transformers are imported by the modules that use them.
"""
