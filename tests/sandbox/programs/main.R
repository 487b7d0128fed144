rest <- commandArgs(trailingOnly = TRUE)
switch(rest[1],
  stdin = for (line in readLines("stdin")) cat("got", line, "\n", sep = c(" ", "")),
  args = for (each in rest[-1]) cat("[", each, "]\n", sep = ""),
  files = cat(readLines("data/in.txt"), sep = "\n"),
  text = cat("žluťoučký 雪 🎉\n"),
  exit = quit(status = 7),
  stderr = {
    cat("to stdout\n")
    cat("to stderr\n", file = stderr())
  },
  uncaught = stop("boom"),
  sleep = Sys.sleep(60),
  hog = {
    held <- list()
    repeat held[[length(held) + 1]] <- numeric(500000) + 1
  },
  flood = cat(sprintf("%09d\n", 0:999999), sep = "")
)
