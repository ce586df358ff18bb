#!/bin/sh
# The whole control loop by curl, against a service that runs the maze bundle: sh clients/examples/curl.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}/v1

call() { # call METHOD PATH [JSON]: shows the request and the reply, and keeps the reply
    printf '%s %s %s\n' "$1" "$2" "${3:-}"
    reply=$(curl --silent --show-error --fail-with-body --request "$1" "$url$2" --header 'content-type: application/json' ${3:+--data "$3"}) || {
        printf '%s\n' "$reply" >&2
        exit 1
    }
    printf '%s\n\n' "$reply"
}

# What is served.
call GET /bundles

# Open a session. The reply's specs say what to send, with units and limits.
call POST /sessions '{"seed": 7}'
session=$(printf '%s' "$reply" | sed 's/.*"session_id": *"\([^"]*\)".*/\1/')

# Start an episode and ask for its first action. The maze's observation is x, y (m), vx, vy (m/s).
call POST "/sessions/$session/episodes"
call POST "/sessions/$session/act" '{"episode": 0, "step": 0, "observation": [10.0, 10.0, 0.0, 0.0]}'

# From then on one request per control step: the outcome of the last action in, the next action out.
call POST "/sessions/$session/step" \
    '{"episode": 0, "step": 0, "reward": 0.0, "next_observation": [10.0, 10.1, 0.0, 0.2], "terminated": false, "truncated": false}'
call POST "/sessions/$session/step" \
    '{"episode": 0, "step": 1, "reward": 1.0, "next_observation": [10.0, 10.2, 0.0, 0.3], "terminated": true, "truncated": false}'

# What the service believes about the task, where its learner stands, and which policy acts.
call GET "/sessions/$session/task"
call GET "/sessions/$session/finetuning?wait_s=5"
call GET "/sessions/$session/policy"

# Close it.
call DELETE "/sessions/$session"
