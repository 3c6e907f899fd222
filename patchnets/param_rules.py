"""Values for parameters by rules on their names: the first regular expression that matches a name decides."""

import difflib
import math
import re
from typing import Any

import jax

from patchnets.errors import UserError

Rules = Any  # ((regex, value), ...), of tuples or lists, as a configuration holds them


def name_of(path: tuple[Any, ...]) -> str:
    """The name of the parameter at a path of keys: "MixerBlock_0/token_mixing/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


REQUIRED = object()
EXPECTED = {
    float: "a number of at least 0",
    bool: "true or false",
    int: "the number of a dimension, from 0, or -1 for none",
}


def match_rules(rules: Rules, params: Any, key: str, kind: type = float, otherwise: Any = REQUIRED) -> Any:
    """The value of the first rule whose regular expression matches the whole name, for every parameter.

    The parameters of blocks that are stacked for `model.scan` have one name, and so one value, for all blocks.

    Args:
      rules: ((regex, value), ...), of tuples or lists.
      params: tree of arrays, or of anything else, whose names count.
      key: what the rules are called in the configuration, for messages: "optimizer.lr_mults".
      kind: float for values that are finite numbers of at least 0, bool for true and false, int for whole numbers of at
        least -1.
      otherwise: the value where no rule matches; by default there has to be one.

    Returns:
      A tree like `params` of values of that kind.

    Raises:
      UserError: the rules are not such pairs; one matches no parameter, or only such as earlier ones took; or there is
        a parameter that none matches, and no value for that.
    """
    pairs = _checked(rules, key, kind)
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [name_of(path) for path, _ in paths]
    deciding = [next((i for i, (regex, _) in enumerate(pairs) if regex.fullmatch(name)), None) for name in names]
    for i, (regex, _) in enumerate(pairs):
        if i in deciding:
            continue
        matched = next((name for name in names if regex.fullmatch(name)), None)
        if matched is None:
            near = difflib.get_close_matches(regex.pattern, names, n=1, cutoff=0.0)
            hint = f", such as {near[0]}" if near else ""
            raise UserError(f"config.{key}: {regex.pattern!r} matches no parameter; it has to match a whole name{hint}")
        raise UserError(
            f"config.{key}: {regex.pattern!r} decides about no parameter, for earlier rules match all of its own, "
            f"such as {matched}; move it further up"
        )
    for name, decides in zip(names, deciding):
        if decides is None and otherwise is REQUIRED:
            last = (".*", kind(kind is not bool))
            raise UserError(f"config.{key}: no rule matches the parameter {name}; end the list with {last}")
    return jax.tree.unflatten(treedef, [otherwise if i is None else pairs[i][1] for i in deciding])


def _checked(rules: Rules, key: str, kind: type) -> list[tuple[re.Pattern[str], Any]]:
    """The rules with their regular expressions compiled and their values of the right kind."""
    expected = EXPECTED[kind]
    if not isinstance(rules, (tuple, list)):
        raise UserError(f"config.{key}={rules!r} is not a list of rules; write ((regex, value), ...)")
    pairs = []
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(
                f"config.{key}: {rule!r} is not a pair of a regex and {expected}; write ((regex, value), ...)"
            )
        pattern, value = rule
        if kind is bool:
            good = isinstance(value, bool)
        elif kind is int:
            good = isinstance(value, int) and not isinstance(value, bool) and value >= -1
        else:
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        if not good:
            raise UserError(f"config.{key}: the value {value!r} for {pattern!r} is not right; expected {expected}")
        try:
            pairs.append((re.compile(pattern), kind(value)))
        except re.error as error:
            raise UserError(f"config.{key}: {pattern!r} is not a regular expression ({error}); correct it") from None
    return pairs
