-- Load for wrk: each thread drives a walk of its own, request by request, and never asks for a step twice.
-- Arguments: a plan, whose lines are "path first_step steps" (one walk each; thread k of n takes lines k, k + n, ...), the number of
-- threads, and the request's body with %d wherever the step goes. Prints one JSON line at the end.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  body_format = args[3]
  walks = {}
  local line_number = 0
  for line in io.lines(args[1]) do
    if line_number % tonumber(args[2]) == number then
      local path, first, steps = line:match("(%S+) (%d+) (%d+)")
      table.insert(walks, {path = path, next = tonumber(first), last = tonumber(first) + tonumber(steps) - 1})
    end
    line_number = line_number + 1
  end
  walk = 1
  probed = number ~= 0  -- wrk asks the first thread once for a request that it never sends
end

function request()
  local current = walks[walk]
  if current.next > current.last and walk < #walks then
    walk = walk + 1
    current = walks[walk]
  elseif current.next > current.last then
    wrk.thread:stop()
  end
  local body = body_format:gsub("%%d", current.next)
  if probed then current.next = current.next + 1 end
  probed = true
  return "POST " .. current.path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests": %d, "duration_us": %d, "errors": %d, "p50_us": %d, "p99_us": %d, "max_us": %d}\n',
    summary.requests, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
