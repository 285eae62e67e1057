"""Complete words of a command line by TAB: verbs, settings, choices. Prints what bash or zsh needs for that.

    embodied completion shell=bash > ~/.local/share/bash-completion/completions/embodied
    embodied completion shell=zsh > ~/.zfunc/_embodied
    eval "$(embodied completion shell=bash)"

The first line serves bash with the package bash-completion, from the next shell on; the second zsh, with
`fpath+=~/.zfunc` before `compinit` in ~/.zshrc; the third this shell alone. A TAB reads the configs' files alone.
"""

from __future__ import annotations

import shlex
import sys

from omegaconf import DictConfig

from embodied.completion import SHELLS
from embodied.errors import UserError, nearest

# -P: a folder that a person happens to be in must not be where modules come from.
BASH = r"""# bash completion of embodied; written by: embodied completion shell=bash
_embodied() {
    local line=${COMP_LINE:0:COMP_POINT} word found kept=
    word=${line##*[[:space:]]}
    # bash replaces what follows the last = or : where these part words, and the whole word elsewhere
    case $COMP_WORDBREAKS in *[=:]*) kept=${word%"${word##*[=:]}"} ;; esac
    COMPREPLY=()
    while IFS= read -r found; do
        found=${found%%$'\t'*}
        COMPREPLY+=("${found#"$kept"}")
    done < <(PYTHON -P -m embodied.completion "$line" 2>/dev/null)
    case ${COMPREPLY[0]} in *[=.]) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _embodied embodied
"""
ZSH = r"""#compdef embodied
# zsh completion of embodied; written by: embodied completion shell=zsh
_embodied() {
    local -a open open_told shut shut_told
    local found name
    for found in "${(@f)$(PYTHON -P -m embodied.completion "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}"; do
        name=${found%%$'\t'*}
        case $name in
            '') ;;
            *[=.]) open+=("$name") open_told+=("${found/$'\t'/  }") ;;
            *) shut+=("$name") shut_told+=("${found/$'\t'/  }") ;;
        esac
    done
    if (( $#open + $#shut )); then
        (( $#open )) && compadd -l -S '' -d open_told -- $open
        (( $#shut )) && compadd -l -d shut_told -- $shut
        return 0
    fi
    compset -P '*='
    _files
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _embodied "$@"; else compdef _embodied embodied; fi
"""


def run(config: DictConfig) -> None:
    """Print it."""
    if config.shell not in SHELLS:
        told = nearest(str(config.shell), SHELLS)
        raise UserError(f"shell must be {' or '.join(SHELLS)}; got {config.shell!r}. {told}")
    text = {"bash": BASH, "zsh": ZSH}[config.shell]
    print(text.replace("PYTHON", shlex.quote(sys.executable)), end="")
