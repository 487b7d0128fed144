use std::io::{self, BufRead, Write};
use std::{env, fs, process, thread, time};

fn main() {
    let args: Vec<String> = env::args().collect();
    match args[1].as_str() {
        "stdin" => {
            for line in io::stdin().lock().lines() {
                println!("got {}", line.unwrap());
            }
        }
        "args" => {
            for each in &args[2..] {
                println!("[{}]", each);
            }
        }
        "files" => print!("{}", fs::read_to_string("data/in.txt").unwrap()),
        "text" => println!("žluťoučký 雪 🎉"),
        "exit" => process::exit(7),
        "stderr" => {
            println!("to stdout");
            eprintln!("to stderr");
        }
        "uncaught" => panic!("boom"),
        "sleep" => thread::sleep(time::Duration::from_secs(60)),
        "hog" => {
            let mut held = Vec::new();
            loop {
                held.push(vec![1u8; 4 << 20]);
                io::stderr().flush().unwrap(); // or the optimizer sees that nobody looks at them
            }
        }
        "flood" => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            for n in 0..1_000_000 {
                writeln!(out, "{:09}", n).unwrap();
            }
        }
        _ => unreachable!(),
    }
}
