which, *rest = ARGV
case which
when "stdin" then $stdin.each_line { |line| puts "got #{line}" }
when "args" then rest.each { |each| puts "[#{each}]" }
when "files" then print File.read("data/in.txt")
when "text" then puts "žluťoučký 雪 🎉"
when "exit" then exit 7
when "stderr"
  puts "to stdout"
  warn "to stderr"
when "uncaught" then raise "boom"
when "sleep" then sleep 60
when "hog"
  held = []
  loop { held << "x" * 4_000_000 }
when "flood" then 1_000_000.times { |n| puts format("%09d", n) }
end
