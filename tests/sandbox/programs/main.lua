local which = arg[1]
local cases = {
  stdin = function() for line in io.lines() do print("got " .. line) end end,
  args = function() for n = 2, #arg do print("[" .. arg[n] .. "]") end end,
  files = function() io.write(io.open("data/in.txt"):read("a")) end,
  text = function() print("žluťoučký 雪 🎉") end,
  exit = function() os.exit(7) end,
  stderr = function()
    print("to stdout")
    io.stderr:write("to stderr\n")
  end,
  uncaught = function() error("boom") end,
  sleep = function() os.execute("sleep 60") end,
  hog = function()
    local held = {}
    while true do held[#held + 1] = string.rep("x", 4000000) end
  end,
  flood = function() for n = 0, 999999 do io.write(string.format("%09d\n", n)) end end,
}
cases[which]()
