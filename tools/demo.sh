#!/usr/bin/env bash
# The whole chain, small: dataset, training, score, samples, video. Called by `make demo`.
# usage: tools/demo.sh OUT NUM_IMAGES KIMG
set -euo pipefail
out=$1 num=$2 kimg=$3
start=$SECONDS
# Two ranks of one thread each train more than twice as fast on two cores as one rank of two threads.
ranks=$(python -c "import os; print(min(2, os.cpu_count() or 1))")
say() { printf '\n[%3d s] %s\n' $((SECONDS - start)) "$1"; }
mkdir -p "$out"

say "1/6 Checking the installation and building the native ops"
python doctor.py
say "2/6 Rendering $num images of the embedded dataset"
[ -f "$out/synth64.zip" ] || python dataset_tool.py synth --out="$out/synth64.zip" --num="$num" --resolution=64 --seed=0
say "3/6 Checking the dataset, with the mesh drawn over some images"
python dataset_tool.py validate "$out/synth64.zip" --overlay="$out/overlay.png"
say "4/6 Training synth64 for $kimg thousand images, starting from the pretrained assets/synth64.pkl"
python train.py --outdir="$out/run" --cfg=synth64 --data="$out/synth64.zip" --resume=assets/synth64.pkl \
  --gpus="$ranks" --blur-fade-kimg=0 --set L.pose_swap_fade_kimg=0 --kimg="$kimg" --tick=0.25 --snap=6
network=$(ls "$out"/run/network-snapshot-*.pkl | tail -n 1)
say "5/6 Scoring $network (a Frechet distance on a stand-in network: not FID)"
python calc_metrics.py --network="$network" --data="$out/synth64.zip" --metrics=fd_random500_full --out="$out/metrics.jsonl"
say "6/6 Samples, and one person talking while the camera orbits"
python gen_samples.py --network="$network" --seeds=0-7 --trunc=0.8 --outdir="$out/samples"
python gen_videos.py --network="$network" --seeds=5 --trunc=0.8 --motion=orbit --drive=talk --with-template --scale=4 \
  --output="$out/talk.mp4"

say "Done. Look at:"
for item in overlay.png run samples/sheet.png talk.mp4 metrics.jsonl; do echo "  $out/$item"; done
