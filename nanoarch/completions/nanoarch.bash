# Completion of nanoarch and of its scripts (python train.py ...) for bash, written by
# `nanoarch completion bash`. Source it, or save it in ~/.local/share/bash-completion/completions/.

_nanoarch_root=@ROOT@

@TABLES@

_nanoarch_reply() {  # PREFIX WORDS: completes $cur to the words; those that end in = or space stay
    local word
    for word in $2; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$1$word")
    done
    [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace 2>/dev/null
}

_nanoarch_files() {  # [SUFFIX]: files and folders that begin with $cur, in config/ from anywhere
    local IFS=$'\n' file root=.
    [[ $cur == config/* && ! -d config ]] && root=$_nanoarch_root
    for file in $(cd "$root" && compgen -f -- "$cur"); do
        [[ -d $root/$file || $file == *$1 ]] && COMPREPLY+=("$file")
    done
    compopt -o filenames 2>/dev/null
}

_nanoarch_argument() {  # PATTERN OR WORDS: completes $cur to files that end so, or to the words
    case $1 in
        '*'*) _nanoarch_files "${1#?}" ;;
        *) _nanoarch_reply "" "$1" ;;
    esac
}

_nanoarch_datasets() {  # the names of prepared datasets and of those that prepare themselves
    local folder
    for folder in "$_nanoarch_root"/data/*/; do
        [[ -f $folder/meta.json || -f $folder/prepare.py ]] && basename "$folder"
    done
}

_nanoarch_value() {  # COMMAND FLAG PREFIX: completes $cur to the values of a flag
    local values list=
    values=$(_nanoarch_values "$1" "$2")
    case $values in
        @file) _nanoarch_files ;;
        @dataset)
            _nanoarch_files
            _nanoarch_reply "$3" "$(_nanoarch_datasets)"
            ;;
        *)
            if [[ $cur == *[,+]* ]]; then
                list=${cur%"${cur##*[,+]}"}
                cur=${cur##*[,+]}
            fi
            _nanoarch_reply "$3$list" "$values"
            ;;
    esac
}

_nanoarch_complete() {  # COMMAND: completes the current word of its arguments
    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} flag
    if [[ $cur == --*=* ]]; then  # where = does not end a word
        flag=${cur%%=*}
        cur=${cur#*=}
        _nanoarch_value "$1" "$flag" "$flag="
    elif [[ $cur == = || $previous == = ]]; then
        [[ $cur == = ]] && flag=$previous || flag=${COMP_WORDS[COMP_CWORD-2]}
        cur=${cur#=}
        _nanoarch_value "$1" "--${flag#--}"
    elif [[ $cur == -* ]]; then
        _nanoarch_reply "" "$(_nanoarch_flags "$1")"
    elif [[ $previous == --* && $(_nanoarch_flags "$1") == *"$previous="* ]]; then
        _nanoarch_value "$1" "$previous"
    else
        _nanoarch_argument "$(_nanoarch_arguments "$1")"
    fi
}

_nanoarch() {
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        local cur=${COMP_WORDS[1]}
        _nanoarch_reply "" "$_nanoarch_commands"
    else
        _nanoarch_complete "${COMP_WORDS[1]}"
    fi
}

_nanoarch_python() {  # python train.py ...
    local place command
    COMPREPLY=()
    for ((place = 1; place < COMP_CWORD; place++)); do
        command=$(_nanoarch_command "${COMP_WORDS[place]##*/}")
        [[ $command ]] && _nanoarch_complete "$command" && return
    done
    [[ $_nanoarch_python_before ]] && "$_nanoarch_python_before" "$@"
}

if [[ $(complete -p python 2>/dev/null) != *_nanoarch_python* ]]; then
    _nanoarch_python_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \([^ ]*\).*/\1/p')
fi
complete -F _nanoarch nanoarch
complete -o bashdefault -o default -F _nanoarch_python python python3
