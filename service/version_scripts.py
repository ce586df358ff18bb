"""Lua scripts with which a session's policy versions and fine-tuning change in Redis: all of a change, or nothing."""

from typing import Final

_IF_LEASED = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local left = redis.call('PTTL', KEYS[2])
if left < 0 then return -1 end
"""

REPORT: Final = (
    _IF_LEASED
    + """
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[3], left)
return 1
"""
)

CHECKPOINT: Final = (
    _IF_LEASED
    + """
redis.call('SET', KEYS[3], ARGV[2], 'PX', left)
redis.call('HDEL', KEYS[4], 'attempts', 'attempted_by')
if ARGV[3] ~= '' and redis.call('HGET', KEYS[4], 'restart') == ARGV[3] then redis.call('HDEL', KEYS[4], 'restart') end
return 1
"""
)

# A version that was gone back from must not come back behind anybody's back: nothing is published while fine-tuning is paused, nor
# before the learner has begun again.
PUBLISH: Final = (
    _IF_LEASED
    + """
if redis.call('HGET', KEYS[3], 'paused') == '1' or redis.call('HEXISTS', KEYS[3], 'restart') == 1 then return 0 end
redis.call('HSET', KEYS[3], 'versions', ARGV[2], 'learned', ARGV[7], 'state', 'idle')
redis.call('HDEL', KEYS[3], 'attempts', 'attempted_by')
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
redis.call('RPUSH', KEYS[7], ARGV[8])
redis.call('LTRIM', KEYS[7], -1000, -1)
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[5], ARGV[2], ARGV[4])
  if ARGV[9] == '' then redis.call('HSET', KEYS[2], 'current', ARGV[2]) end
  local held = redis.call('HKEYS', KEYS[5])
  table.sort(held, function(a, b) return tonumber(a) < tonumber(b) end)
  local serving, restart = redis.call('HGET', KEYS[2], 'current'), redis.call('HGET', KEYS[3], 'restart')
  for i = 1, #held - tonumber(ARGV[6]) do
    if held[i] ~= serving and held[i] ~= restart then redis.call('HDEL', KEYS[5], held[i]) end
  end
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[6], ARGV[5]) end
for i = 3, 7 do redis.call('PEXPIRE', KEYS[i], left) end
return tonumber(ARGV[2])
"""
)

# A version that is approved after going back is what serves then, so it is what the learner begins again from.
MAKE_CURRENT: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] ~= '0' and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'current', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[3], 'paused', '1', 'restart', ARGV[1], 'fallen', ARGV[3])
  if ARGV[4] == '' then redis.call('HDEL', KEYS[3], 'fallback') else redis.call('HSET', KEYS[3], 'fallback', ARGV[4]) end
else
  if redis.call('HEXISTS', KEYS[3], 'restart') == 1 then redis.call('HSET', KEYS[3], 'restart', ARGV[1]) end
  redis.call('HDEL', KEYS[3], 'fallback')
end
redis.call('RPUSH', KEYS[4], ARGV[2])
for i = 5, #ARGV, 2 do redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1]) end
for i = 3, 5 do redis.call('PEXPIRE', KEYS[i], redis.call('PTTL', KEYS[1])) end
return 1
"""

# Of several processes that find returns to be what they were, one resumes; after a client has paused or resumed, none.
RESUME: Final = """
if redis.call('HDEL', KEYS[1], 'fallback') == 0 then return 0 end
redis.call('HSET', KEYS[1], 'paused', '0')
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
"""
