# Runs inside the system that .ci/test-windows unpacked: the same commands with the program for Linux, and with the one for Windows on Vulkan and
# on DX12, all on lavapipe. Each leaves its results in a folder of its name.
set -u
cd /w
export HOME=/root WINEPREFIX=/root/prefix WINEDEBUG=-all DISPLAY=:77 XDG_RUNTIME_DIR=/tmp NODEVICE_SELECT=1
export WINEDLLOVERRIDES='mscoree,mshtml=;d3dcompiler_47=n' # Microsoft's FXC, not Wine's
Xvfb :77 -screen 0 640x480x24 -nolisten tcp >/dev/null 2>&1 & # Wine's Vulkan needs a display
display=$!
trap 'kill $display' EXIT
sleep 3
wine=/usr/lib/wine/wine64
[ -d $WINEPREFIX ] || $wine wineboot -i >/dev/null 2>&1
$wine reg add 'HKCU\Software\Wine\Direct3D' /v renderer /d vulkan /f >/dev/null 2>&1

# All steps of one program. A step that fails leaves no result, which compare_runs.py then misses.
run_all() { # NAME PROGRAM...
  local name=$1 flags=(--model demo --data pairs.jsonl)
  shift
  local device=(--device "$([ "$name" = dx12 ] && echo dx12 || echo vulkan)")
  rm -rf "$name" && mkdir "$name"
  echo "$name"
  timeout 900 "$@" info "${device[@]}" --json >"$name/info.json"
  timeout 900 "$@" score "${flags[@]}" "${device[@]}" --out "$name/score.jsonl"
  timeout 900 "$@" train "${flags[@]}" "${device[@]}" --max-steps 4 --save-steps 2 --output-dir "$name/whole"
  # As a kill after the first checkpoint leaves it.
  mkdir "$name/resumed" && cp -r "$name/whole/checkpoint-2" "$name/resumed/" && head -n 2 "$name/whole/metrics.jsonl" >"$name/resumed/metrics.jsonl"
  timeout 900 "$@" train "${flags[@]}" "${device[@]}" --max-steps 4 --save-steps 2 --output-dir "$name/resumed" --resume
  timeout 900 "$@" generate --model demo "${device[@]}" --prompt 'reverse abc' --temperature 0 >"$name/greedy.txt"
  timeout 900 "$@" generate --model demo "${device[@]}" --prompt 'reverse abc' --top-k 5 --top-p 0.9 --seed 3 >"$name/sampled.txt"
} 2>&1

run_all linux ./jointwise
run_all vulkan $wine jointwise.exe
run_all dx12 $wine jointwise.exe

# What is Windows' own: quotes in a judge's command, one that does not end, names of devices. Statuses and messages are compared.
{
  rm -rf judged late
  echo two words >words.txt
  echo '{"instruction": "Larger?", "response_0": "1", "response_1": "2"}' >compare.jsonl
  $wine jointwise.exe judge --data compare.jsonl --command 'findstr /C:"two words" "words.txt" >nul && echo (a)' --output-dir judged
  echo "status $?"
  SECONDS=0
  $wine jointwise.exe judge --data compare.jsonl --command 'ping -n 60 127.0.0.1 >nul' --timeout 0.5 --output-dir late
  echo "status $? in time: $((SECONDS < 20))"
  $wine jointwise.exe score --model demo --data pairs.jsonl --out nul
  echo "status $?"
  $wine jointwise.exe train --model demo --data pairs.jsonl --output-dir runs/con
  echo "status $?"
} >windows.txt 2>&1
cat windows.txt
