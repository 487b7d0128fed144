-- The admission queue: one call of this script is one call of the port, over keys that begin with KEYS[1].
--
-- Who runs:   run           hash   id -> entry                run_at   zset  id by the time of its admission
--             run_project   hash   project -> how many        run_lang hash  language -> how many
-- Who waits:  wait          hash   id -> entry, level, number wait_ids zset  ids in their order
--             wait_project  hash   project -> how many        ages     zset  number:id by when it goes one level up
-- A level, which is a priority's place, 0 the most urgent:
--             order:L       zset   project by how many it runs, then by the number of its last turn
--             sizes:L       hash   project -> how many wait   langs:L  hash  language -> how many wait
--             least:L       hash   k -> how many projects have k waiting or more
--             of:L:P        hash   language -> how many wait of the project
--             line:L:P:G    zset   ids of the project and language G by their numbers
-- Numbers:    number, turn, mean_us, and the gate.  built is there once the sagas have been taken over.

local root, command, now = KEYS[1], ARGV[1], tonumber(ARGV[2])
local running_most, project_most, lang_most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local ageing = tonumber(ARGV[6])
local LEVELS = 5
local TURNS = 2 ^ 42 -- a load and a turn in one number that a double holds

if now == 0 then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
end

local function key(...) return root .. table.concat({...}, ':') end
local function count(name, field) return tonumber(redis.call('HGET', key(name), field) or 0) end
local function size(name) return redis.call('HLEN', key(name)) end
local function whole(number) return string.format('%.0f', number) end

local function more(name, field) redis.call('HINCRBY', name, field, 1) end
local function less(name, field)
    if redis.call('HINCRBY', name, field, -1) <= 0 then redis.call('HDEL', name, field) end
end

local function gate() return redis.call('GET', key('gate')) or 'open' end
local function mean() return tonumber(redis.call('GET', key('mean_us')) or 1000000) end

-- Entries: {project, language, priority's place, since}, and of one who waits its level and number as well.

local function waiting(id)
    local found = redis.call('HGET', key('wait'), id)
    return found and cjson.decode(found) or nil
end

local function line(level, entry) return key('line', level, entry[1], entry[2]) end
local function age_of(entry, id) return string.format('%015.0f:%s', entry[6], id) end

local function add_to_line(id, entry)
    local level, project = entry[5], entry[1]
    local held = redis.call('HINCRBY', key('sizes', level), project, 1)
    if held == 1 then
        local turn = redis.call('INCR', key('turn'))
        redis.call('ZADD', key('order', level), whole(count('run_project', project) * TURNS + turn), project)
    end
    more(key('least', level), held)
    more(key('langs', level), entry[2])
    more(key('of', level, project), entry[2])
    redis.call('ZADD', line(level, entry), entry[6], id)
end

local function remove_from_line(id, entry)
    local level, project = entry[5], entry[1]
    local held = redis.call('HINCRBY', key('sizes', level), project, -1)
    less(key('least', level), held + 1)
    less(key('langs', level), entry[2])
    less(key('of', level, project), entry[2])
    redis.call('ZREM', line(level, entry), id)
    if held == 0 then
        redis.call('HDEL', key('sizes', level), project)
        redis.call('ZREM', key('order', level), project)
    end
    redis.call('ZREM', key('ages'), age_of(entry, id))
end

local function stand(id, entry, level)
    entry[5], entry[6] = level, redis.call('INCR', key('number'))
    redis.call('HSET', key('wait'), id, cjson.encode({
        entry[1], entry[2], entry[3], whole(entry[4]), entry[5], entry[6]}))
    add_to_line(id, entry)
    if level > 0 then
        redis.call('ZADD', key('ages'), whole(entry[4] + (entry[3] - level + 1) * ageing), age_of(entry, id))
    end
end

-- Everybody whose time has come goes to the end of the next higher level, in the order of these times.
local function age()
    while true do
        local late = redis.call('ZRANGEBYSCORE', key('ages'), '-inf', whole(now), 'LIMIT', 0, 1)[1]
        if not late then return end
        local id = string.sub(late, string.find(late, ':', 1, true) + 1)
        local entry = waiting(id)
        remove_from_line(id, entry)
        stand(id, entry, entry[5] - 1)
    end
end

local function leave(id, entry)
    redis.call('HDEL', key('wait'), id)
    redis.call('ZREM', key('wait_ids'), id)
    less(key('wait_project'), entry[1])
    remove_from_line(id, entry)
end

local function join(id, entry)
    age() -- those whose time has come stand before whoever comes now
    stand(id, entry, entry[3])
    redis.call('ZADD', key('wait_ids'), 0, id)
    more(key('wait_project'), entry[1])
end

local function note_load(project, turn_at)
    if size('wait') == 0 then return end
    local load = count('run_project', project)
    for level = 0, LEVELS - 1 do
        local score = redis.call('ZSCORE', key('order', level), project)
        if score then
            local turn = level == turn_at and redis.call('INCR', key('turn')) or tonumber(score) % TURNS
            redis.call('ZADD', key('order', level), whole(load * TURNS + turn), project)
        end
    end
end

local function admit(id, entry, level)
    redis.call('HSET', key('run'), id, cjson.encode({entry[1], entry[2], entry[3], whole(entry[4])}))
    redis.call('ZADD', key('run_at'), whole(now), id)
    more(key('run_project'), entry[1])
    more(key('run_lang'), entry[2])
    note_load(entry[1], level)
end

local function has_place(project) return size('run') < running_most and count('run_project', project) < project_most end

-- The first of a project in line whose language is not full.
local function first(level, project, full)
    local chosen, at
    for _, lang in ipairs(redis.call('HKEYS', key('of', level, project))) do
        if not full[lang] then
            local head = redis.call('ZRANGE', key('line', level, project, lang), 0, 0, 'WITHSCORES')
            local number = tonumber(head[2])
            if not at or number < at then chosen, at = head[1], number end
        end
    end
    return chosen
end

local function next_of(level, full)
    local open = false
    for _, lang in ipairs(redis.call('HKEYS', key('langs', level))) do
        if not full[lang] then open = true end
    end
    local start = 0
    while open do
        local some = redis.call('ZRANGE', key('order', level), start, start + 49, 'WITHSCORES')
        if #some == 0 then return nil end
        for i = 1, #some, 2 do
            if math.floor(tonumber(some[i + 1]) / TURNS) >= project_most then return nil end
            local id = first(level, some[i], full)
            if id then return id end
        end
        start = start + 50
    end
    return nil
end

local function place(id, entry)
    local level, project, ahead, own = entry[5], entry[1], 0, 0
    for _, lang in ipairs(redis.call('HKEYS', key('of', level, project))) do
        own = own + redis.call('ZCOUNT', key('line', level, project, lang), '-inf', '(' .. entry[6])
    end
    local least = key('least', level)
    local turn = redis.call('ZRANK', key('order', level), project)
    ahead = math.floor(turn * tonumber(redis.call('HGET', least, own + 1)) / tonumber(redis.call('HGET', least, 1)))
    for k = 1, own do ahead = ahead + tonumber(redis.call('HGET', least, k)) end
    for higher = 0, level - 1 do
        for _, held in ipairs(redis.call('HVALS', key('sizes', higher))) do ahead = ahead + tonumber(held) end
    end
    local turns = math.max((ahead + 1) / running_most, (own + 1) / project_most)
    return {ahead + 1, whole(turns * mean() / 1000)}
end

-- Who waits in one level, turn by turn, as many as are wanted.
local function in_turn(level, wanted, found)
    local lines = {}
    for i, project in ipairs(redis.call('ZRANGE', key('order', level), 0, wanted - 1)) do
        lines[i] = {}
        for _, lang in ipairs(redis.call('HKEYS', key('of', level, project))) do
            local some = redis.call('ZRANGE', key('line', level, project, lang), 0, wanted - 1, 'WITHSCORES')
            for j = 1, #some, 2 do table.insert(lines[i], {tonumber(some[j + 1]), some[j]}) end
        end
        table.sort(lines[i], function(a, b) return a[1] < b[1] end)
    end
    local round, left = 1, true
    while left and #found < wanted do
        left = false
        for _, each in ipairs(lines) do
            if each[round] and #found < wanted then
                table.insert(found, each[round][2])
                left = true
            end
        end
        round = round + 1
    end
end

local function given(i) return {ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])} end

local commands = {}

function commands.offer()
    local id, entry = ARGV[7], given(7)
    if redis.call('HEXISTS', key('run'), id) == 1 then return 1 end
    -- Somebody who waits and could run goes first; without anybody waiting there is nothing to compare.
    if size('wait') > 0 or gate() ~= 'open' then return 0 end
    if not has_place(entry[1]) or count('run_lang', entry[2]) >= lang_most then return 0 end
    admit(id, entry, nil)
    return 1
end

function commands.restore()
    for i = 8, #ARGV, 5 do
        local id, entry = ARGV[i], given(i)
        local known = redis.call('HEXISTS', key('run'), id) + redis.call('HEXISTS', key('wait'), id)
        if known == 0 and ARGV[7] == '1' then admit(id, entry, nil) end
        if known == 0 and ARGV[7] == '0' then join(id, entry) end
    end
    return 1
end

commands.enqueue = commands.restore

function commands.rank()
    local id = ARGV[7]
    local standing = waiting(id)
    if standing then
        leave(id, standing)
        join(id, given(7))
    end
    return 1
end

function commands.release()
    local id = ARGV[7]
    local found = redis.call('HGET', key('run'), id)
    if found then
        local entry = cjson.decode(found)
        local lasted = now - tonumber(redis.call('ZSCORE', key('run_at'), id))
        redis.call('HDEL', key('run'), id)
        redis.call('ZREM', key('run_at'), id)
        less(key('run_project'), entry[1])
        less(key('run_lang'), entry[2])
        note_load(entry[1], nil)
        redis.call('SET', key('mean_us'), whole(mean() + 0.1 * (lasted - mean())))
        return 1
    end
    local standing = waiting(id)
    if standing then leave(id, standing) end
    return 0
end

function commands.grant()
    local granted, full = {}, {}
    if size('wait') == 0 or gate() ~= 'open' then return granted end
    age()
    local langs = redis.call('HGETALL', key('run_lang'))
    for i = 1, #langs, 2 do
        if tonumber(langs[i + 1]) >= lang_most then full[langs[i]] = true end
    end
    while size('run') < running_most do
        local id
        for level = 0, LEVELS - 1 do
            id = next_of(level, full)
            if id then break end
        end
        if not id then break end
        local entry = waiting(id)
        leave(id, entry)
        admit(id, entry, entry[5])
        if count('run_lang', entry[2]) >= lang_most then full[entry[2]] = true end
        table.insert(granted, {id, entry[1], entry[2], entry[3], entry[4]})
    end
    return granted
end

function commands.held()
    return redis.call('ZRANGEBYSCORE', key('run_at'), '-inf', '(' .. whole(now - tonumber(ARGV[7])))
end

function commands.place()
    age()
    local entry = waiting(ARGV[7])
    return entry and place(ARGV[7], entry) or {}
end

function commands.room()
    local project = ARGV[7]
    return {gate(), size('wait'), size('run'), count('wait_project', project), count('run_project', project),
            size('wait_project'), whole(mean())}
end

function commands.survey()
    age()
    local levels = {}
    for level = 0, LEVELS - 1 do
        local sum = 0
        for _, held in ipairs(redis.call('HVALS', key('sizes', level))) do sum = sum + tonumber(held) end
        levels[level + 1] = sum
    end
    return {gate(), size('wait'), size('run'), levels, redis.call('HGETALL', key('wait_project')),
            redis.call('HGETALL', key('run_project'))}
end

function commands.waiting()
    age()
    local after, found = ARGV[8] == '' and '-' or '(' .. ARGV[8], {}
    for i, id in ipairs(redis.call('ZRANGEBYLEX', key('wait_ids'), after, '+', 'LIMIT', 0, tonumber(ARGV[7]))) do
        local entry = waiting(id)
        found[i] = {{id, entry[1], entry[2], entry[3], entry[4]}, entry[5], place(id, entry)}
    end
    return found
end

function commands.front()
    local found = {}
    for level = 0, LEVELS - 1 do
        if #found < tonumber(ARGV[7]) then in_turn(level, tonumber(ARGV[7]), found) end
    end
    return found
end

function commands.gate()
    redis.call('SET', key('gate'), ARGV[7])
    return 1
end

function commands.built()
    redis.call('SET', key('built'), 1)
    return 1
end

-- What Redis has forgotten is made again from the sagas before anybody is let through.
local makes = {restore = true, gate = true, built = true, release = true}
if not makes[command] and redis.call('EXISTS', key('built')) == 0 then return redis.error_reply('UNBUILT') end
return commands[command]()
