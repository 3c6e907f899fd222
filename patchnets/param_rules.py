"""Values for parameters by rules on their names: the first matching regular expression decides."""

import difflib
import math
import re
from typing import Any

import jax

from patchnets.errors import UserError

Rules = Any  # ((regex, value), ...), of tuples or lists, as a configuration holds them


def name_of(path: tuple[Any, ...]) -> str:
    """Return the name of the parameter at a tree path: "MixerBlock_0/token_mixing/Dense_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


REQUIRED = object()
EXPECTED = {
    float: "a number of at least 0",
    bool: "true or false",
    int: "the number of a dimension, from 0, or -1 for none",
}


def match_rules(rules: Rules, params: Any, key: str, kind: type = float, otherwise: Any = REQUIRED) -> Any:
    """Return for every parameter the value of the first rule whose regular expression matches its full name.

    Parameters of blocks stacked for `model.scan` have one name, and so one value, for all blocks.

    Args:
      rules: ((regex, value), ...), of tuples or lists.
      params: tree of parameters; only their names are used.
      key: configuration key of the rules, for error messages: "optimizer.lr_mults".
      kind: type of the values: float (finite, at least 0), bool, or int (at least -1).
      otherwise: value if no rule matches; by default that is an error.

    Returns:
      A tree like `params` of values of type `kind`.

    Raises:
      UserError: the rules are malformed; a rule matches no parameter, or only parameters that earlier rules match; or
        no rule matches a parameter and there is no `otherwise`.
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
            raise UserError(f"config.{key}: {regex.pattern!r} matches no parameter; it has to match a full name{hint}")
        raise UserError(
            f"config.{key}: {regex.pattern!r} has no effect: earlier rules match all its parameters, such as "
            f"{matched}; move it further up"
        )
    for name, decides in zip(names, deciding):
        if decides is None and otherwise is REQUIRED:
            last = (".*", kind(kind is not bool))
            raise UserError(f"config.{key}: no rule matches the parameter {name}; end the list with {last}")
    return jax.tree.unflatten(treedef, [otherwise if i is None else pairs[i][1] for i in deciding])


def _checked(rules: Rules, key: str, kind: type) -> list[tuple[re.Pattern[str], Any]]:
    """Return the rules with compiled regular expressions and values of type `kind`."""
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
            valid = isinstance(value, bool)
        elif kind is int:
            valid = isinstance(value, int) and not isinstance(value, bool) and value >= -1
        else:
            valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        if not valid:
            raise UserError(f"config.{key}: the value {value!r} for {pattern!r} is invalid; expected {expected}")
        try:
            pairs.append((re.compile(pattern), kind(value)))
        except re.error as error:
            raise UserError(f"config.{key}: {pattern!r} is not a regular expression ({error}); correct it") from None
    return pairs
