def build_tldr(*a):
    raise NotImplementedError
