#compdef nanoarch
# Completion of nanoarch and of its scripts (python train.py ...) for zsh, written by
# `nanoarch completion zsh`. Source it after compinit, or save it as _nanoarch in a folder of $fpath.

_nanoarch_root=@ROOT@

@TABLES@

_nanoarch_datasets() {  # the names of prepared datasets and of those that prepare themselves
    local folder
    for folder in $_nanoarch_root/data/*(/N); do
        [[ -f $folder/meta.json || -f $folder/prepare.py ]] && print -r -- ${folder:t}
    done
}

_nanoarch_value() {  # COMMAND FLAG: the values of a flag
    local values="$(_nanoarch_values $1 $2)"
    case $values in
        @file) _files ;;
        @dataset)
            compadd -- ${(f)"$(_nanoarch_datasets)"}
            _files
            ;;
        *)
            compset -P '*[,+]'
            local -a words_ends=(${${(z)values}:#*=}) keys=(${(M)${(z)values}:#*=})
            (( $#words_ends )) && compadd -- $words_ends
            (( $#keys )) && compadd -S '' -- $keys
            ;;
    esac
}

_nanoarch_complete() {  # COMMAND: the current word of its arguments
    local previous=${words[CURRENT-1]}
    local -a flags=(${(f)"$(_nanoarch_flags $1)"})
    if compset -P '--[^=]#='; then
        _nanoarch_value $1 ${IPREFIX%=}
    elif [[ $previous == (--vary|--tune) ]] && compset -P '[^=]#='; then
        _nanoarch_value $1 --${IPREFIX%=}
    elif [[ $PREFIX == -* ]]; then
        local -a keys=(${(M)flags:#*=:*}) switches=(${flags:#*=:*})
        _describe -t flags flag keys -S '' -- switches
    elif [[ $previous == --* && -n ${(M)flags:#$previous=:*} ]]; then
        _nanoarch_value $1 $previous
    else
        local arguments="$(_nanoarch_arguments $1)"
        case $arguments in
            '*'*)
                _files -g $arguments
                [[ $arguments == '*.py' && ! -d config ]] && _files -W $_nanoarch_root -g $arguments
                ;;
            *) compadd -- ${(z)arguments} ;;
        esac
    fi
}

_nanoarch() {
    setopt localoptions extendedglob
    if (( CURRENT == 2 )); then
        compadd -- ${(z)_nanoarch_commands}
    else
        _nanoarch_complete ${words[2]}
    fi
}

_nanoarch_python() {  # python train.py ...
    setopt localoptions extendedglob
    local place command
    for (( place = 2; place < CURRENT; place++ )); do
        command=$(_nanoarch_command ${words[place]:t})
        [[ -n $command ]] && _nanoarch_complete $command && return
    done
    ${_nanoarch_python_before:-_files}
}

if [[ ${_comps[python]} != _nanoarch_python ]]; then
    _nanoarch_python_before=${_comps[python]}
fi
compdef _nanoarch nanoarch
compdef _nanoarch_python python python3
if [[ ${funcstack[1]} == _nanoarch ]]; then _nanoarch "$@"; fi
