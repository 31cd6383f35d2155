"""A backend of Triton for CPUs that compiles nothing: with TRITON_INTERPRET=1 Triton runs its kernels in NumPy.

vLLM's Model Runner V2, the only one that drafts with DSpark, has no other kernels than Triton's, and vLLM for CPUs
looks for a backend called cpu before it uses any. The wheels of Triton have none. This one is found there, and is never
asked to compile.
"""
