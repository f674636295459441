"""How tensors under names are fitted to other names, shapes and dtypes: rules, what they ask, the plan, its report.

What the tensors lie in, files or modules, is below :class:`~convweights.fitting.contents.Contents`.
"""
