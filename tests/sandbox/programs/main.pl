use strict;
use warnings;

my ($case, @rest) = @ARGV;
my %cases = (
    stdin => sub { print "got $_" while <STDIN> },
    args  => sub { print "[$_]\n" for @rest },
    files => sub { open my $file, "<", "data/in.txt" or die $!; print while <$file> },
    text  => sub { print "žluťoučký 雪 🎉\n" },
    exit  => sub { exit 7 },
    stderr => sub { print "to stdout\n"; print STDERR "to stderr\n" },
    uncaught => sub { $! = 0; die "boom" },
    sleep => sub { sleep 60 },
    hog => sub { my @held; push @held, "x" x (4_000_000 + @held) while 1 },
    flood => sub { printf "%09d\n", $_ for 0 .. 999_999 },
);
$cases{$case}->();
