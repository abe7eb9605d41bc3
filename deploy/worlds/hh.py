def build_hh(*a):
    raise NotImplementedError
