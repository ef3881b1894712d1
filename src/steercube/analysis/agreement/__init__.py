"""Do the logits and the generated answers agree on which layers steer?"""
