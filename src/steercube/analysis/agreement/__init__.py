"""Do the curves over layers of logits and of generated answers agree?"""
