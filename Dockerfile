# The trainer in a container. Not yet built.
#
#   docker build -t cspnet .
#   docker run --gpus all --ipc=host --stop-timeout 300 -v /data:/data -v "$PWD/runs:/cspnet/runs" cspnet \
#       cspnet-train --recipe recipes/darknet/csresnet50.yaml --data-path /data/imagenet --output-dir runs/mine --resume auto
#
# The wheel of torch brings CUDA's libraries with it; the host has to have NVIDIA's driver and container toolkit.
FROM python:3.11-slim
WORKDIR /cspnet
COPY requirements.txt requirements.lock ./
RUN pip install --no-cache-dir -r requirements.txt -c requirements.lock
COPY . .
RUN pip install --no-cache-dir -c requirements.lock '.[plot,export]'
# The signal that lets a run save before it ends, exit code 75, is handed on as it is: no shell stands in between.
STOPSIGNAL SIGTERM
CMD ["cspnet-train", "--help"]
