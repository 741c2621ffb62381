"""FLAME's name and sizes, by which it is distinguished from other heads."""

NAME = "flame"
VERTICES, JOINTS = 5023, 5
# FLAME has 300 shape and 100 expression modes in one basis. All shapes are kept: DECA tells the first 100,
# SMIRK all 300, and either way the parameters belong to the same head. Both tell 50 expressions.
SHAPES, EXPRESSIONS, FIRST_EXPRESSION, POSES = 300, 50, 300, 36
