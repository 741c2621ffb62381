# What the scripts beside this one share; they set `config`, and $1 is the folder of the results.
out=${1:?name the folder for the results}
mkdir -p "$out"
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
all=$(seq -s, 0 $((gpus > 1 ? gpus - 1 : 0)))
last=${all##*,} others=${all%,*} # with a single GPU both are that one, and two phases share it

# phase NAME GPUS: trains one phase of the experiment unless it is finished.
phase() {
    [ ! -e "$out/$1.done" ] || return 0
    local launcher=(python)
    [[ $2 != *,* ]] || launcher=(accelerate launch --multi_gpu --num_processes "$(tr , '\n' <<<"$2" | wc -l)")
    CUDA_VISIBLE_DEVICES=$2 "${launcher[@]}" -m anifacediff_core train --config "$config" --phase "$1" --out "$out"
}

# beside PHASE NAMES...: trains PHASE on the last GPU and meanwhile the others in turn; waits for both, whatever ends first.
beside() {
    local code=0 name
    phase "$1" "$last" &
    for name in "${@:2}"; do
        phase "$name" "$others" || { code=$? && break; }
    done
    wait $! || code=$?
    return "$code"
}
